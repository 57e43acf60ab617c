"""When things happen in training: the GAN step, optimizers and schedules, checkpoints."""
