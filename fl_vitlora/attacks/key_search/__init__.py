"""The mathematics that finds the key of a cipher in ciphertext, or in a patch embedding."""
