"""What a run has measured, and the page that shows it."""
