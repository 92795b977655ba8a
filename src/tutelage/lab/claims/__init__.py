"""What the field says of supervised fine-tuning, each as an experiment in the small world."""
