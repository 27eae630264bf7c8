/*
 * s3_int.h
 *	  Private parts of module s3.
 */
#ifndef SWARM_S3_S3_INT_H
#define SWARM_S3_S3_INT_H

#include "s3/s3.h"

extern char *swarm_s3_allowed_endpoints;

#endif							/* SWARM_S3_S3_INT_H */
