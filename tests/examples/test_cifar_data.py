"""The CIFAR-10 loader: packed files decode in order, augmentation moves pixels and invents none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


def test_packed_files_decode_to_their_images_in_order(tmp_path: Path, pack: Callable[[Path, np.ndarray], None]) -> None:
    import cifar_data

    colours = np.random.default_rng(0).integers(0, 256, (12, 3), dtype=np.uint8)
    flat = np.ascontiguousarray(np.broadcast_to(colours[:, None, None], (12, 32, 32, 3)))
    pack(tmp_path / "train.npz", flat)
    pack(tmp_path / "test.npz", flat[:3])
    train, test = cifar_data.load(tmp_path)
    assert train.pixels.shape == (12, 32, 32, 3)
    assert len(test) == 3
    assert train.labels.tolist() == [*range(10), 0, 1]
    assert np.abs(train.pixels[:, 16, 16].numpy().astype(int) - colours).max() <= 3


def test_crops_are_windows_of_the_padded_image_or_of_its_mirror() -> None:
    import cifar_data

    torch.manual_seed(0)
    pixels = torch.arange(1, 32 * 32 + 1, dtype=torch.int32).reshape(1, 32, 32, 1).expand(16, 32, 32, 3)
    padded = torch.nn.functional.pad(pixels[0], (0, 0, 4, 4, 4, 4))
    windows = [padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    windows += [window.flip(1) for window in windows]
    for image in cifar_data.crop_and_flip(pixels):
        assert any(torch.equal(image, window) for window in windows)


def test_batches_are_normalised_channels_last_and_complete() -> None:
    import cifar_data

    images = cifar_data.Images(torch.full((10, 32, 32, 3), 255, dtype=torch.uint8), torch.arange(10))
    batches = list(images.batches(4, augment=True))
    assert sorted(y for _, labels in batches for y in labels.tolist()) == list(range(10))
    (first, _), *_ = images.batches(4)
    assert first.shape == (4, 3, 32, 32)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(first[0, :, 0, 0], (1 - cifar_data.MEAN) / cifar_data.STD)
