"""What varies: experiments, studies and the runner that puts the rooms together."""
