"""What an experiment will cost, before it is paid: time, memory, disk and API tokens, by arithmetic on its configuration."""
