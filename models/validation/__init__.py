"""Out-of-fold and test predictions that need not be doubted, and the learning curve."""
