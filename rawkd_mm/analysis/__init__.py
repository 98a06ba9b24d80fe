"""What the command line tools in tools/ do, from the logs and checkpoints of trainings."""
