"""What the GPU job does, as commands that also run by hand: look at the machine, measure, put shards together."""
