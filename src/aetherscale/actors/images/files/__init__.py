"""Files of images: what their headers say, and overlays on them."""
