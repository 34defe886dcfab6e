"""A web page for a trained pipeline: upload X-rays, generate CT volumes, look at them (extra `app`)."""
