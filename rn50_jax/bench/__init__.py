"""The parts of `python -m rn50_jax.benchmark`; nothing else imports them."""
