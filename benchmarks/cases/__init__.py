"""One benchmark a file; each declares ``BENCHMARK``."""
