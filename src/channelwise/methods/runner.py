"""What the runners of the iterative and the one-step method have in common."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NoReturn

from channelwise.errors import InvalidArgumentError
from channelwise.methods.arguments import check_path
from channelwise.methods.info_file import write_info


class PruningRunner:
    """Names of the Vitis AI Optimizer that both runners have."""

    def generate_pruning_info(self, filename: str | os.PathLike[str], pruning_info: Mapping[str, Any]) -> None:
        """Write ``model._pruning_info`` of a pruned model as JSON.

        Raises:
            InvalidArgumentError: ``pruning_info`` is something else.
            ResultsFileError: the file cannot be written.
        """
        check_path("filename", filename, optional=True)
        write_info(filename, pruning_info)

    def transform(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not carried over: raises InvalidArgumentError that says what to use."""
        raise InvalidArgumentError(
            "transform is not carried over. The slim model of a spec is what "
            "IterativePruningRunner(model, inputs).prune(spec_path=..., mode='slim') returns."
        )
