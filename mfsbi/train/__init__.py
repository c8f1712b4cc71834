"""Training: data in batches, losses as values, schedules as data, and one loop that runs them."""
