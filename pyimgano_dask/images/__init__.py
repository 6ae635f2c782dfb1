"""From what the user names to pixels: listing inputs, reading their bytes, decoding them."""
