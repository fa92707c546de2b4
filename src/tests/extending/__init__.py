"""What users add: each module writes models, schemas, routes, jobs and migrations into a copy, and asks over HTTP."""
