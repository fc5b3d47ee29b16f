"""The lab: a page in the browser that looks inside a trained network, and the numbers behind it."""

from ditlab.lab.lens import Lens

__all__ = ["Lens"]
