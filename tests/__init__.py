"""Tests of channelwise, in folders that mirror src/channelwise."""
