"""The commands, a module for each part of an experiment: thin layers over one plain function each, which import what they need when they run."""
