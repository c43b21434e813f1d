"""Conditions of a model besides the noise: attribute substitution, Fooocus' patch, edit prompts."""
