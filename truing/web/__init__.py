"""The labelling app: pages for annotators and leads, and a REST API. It never loads torch."""
