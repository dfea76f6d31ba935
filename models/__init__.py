"""STAGE 2: features -> probabilities. Imports features.

X, y, ids, groups --heads (or finetuning)--> y, proba, ids, groups --metrics--> scores with intervals
"""
