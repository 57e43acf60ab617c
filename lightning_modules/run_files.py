"""The names that a training gives to what it writes into the folder of its run."""

BAD_BATCHES = "bad-batches"
CHECKPOINTS = "checkpoints"
LOGS = "logs"
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb-id.txt"
