"""Files that version 0.1's first format wrote, before digests of tensors and of networks were added to some of them."""
