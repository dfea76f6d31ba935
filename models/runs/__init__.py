"""Runs: a head or fine-tuned network trained on one view, its predictions, scores and comparison."""
