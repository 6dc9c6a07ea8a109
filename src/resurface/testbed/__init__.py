"""The testbed: a fictional world, a tokenizer and two tiny models, so that the whole science runs anywhere, offline."""
