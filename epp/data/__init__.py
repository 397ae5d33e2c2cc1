"""What is known of the endpoints: which there are (discovery), and what they report (scrapes of their metrics)."""
