"""What the layers of a dense model see on calibration images: their products, and the Gram matrices of their inputs."""

from channelwise.statistics.grams import Grams, LayerGram, gather
from channelwise.statistics.moments import Moments
from channelwise.statistics.products import Product, ProductWatch

__all__ = ["Grams", "LayerGram", "Moments", "Product", "ProductWatch", "gather"]
