"""What `python -m rn50_jax.benchmark` is made of; nothing else imports it."""
