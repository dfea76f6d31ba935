"""VERBS: what make and the command line run. Imports features and models."""
