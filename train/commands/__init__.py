"""The commands of the train stage: training, and what is made from a run afterwards."""
