"""A small made data set, so that the whole pipeline can be watched on any machine. Nothing else imports this."""
