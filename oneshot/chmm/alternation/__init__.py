"""CHMM-ALT: the stages of CHMM and tagger, and the state that one hands to the next."""
