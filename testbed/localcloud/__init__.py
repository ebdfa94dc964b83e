"""A small EC2, S3 and SQS region on one machine, for the demo and the tests; never imported by the product."""
