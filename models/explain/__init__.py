"""Class activation maps of trained heads and fine-tuned networks."""
