/*
 * s3_int.h
 *	  Private parts of module s3.
 */
#ifndef SWARM_S3_S3_INT_H
#define SWARM_S3_S3_INT_H

#include "s3/s3.h"

extern char *swarm_s3_allowed_endpoints;

/*
 * The folder of an endpoint file:///path, without a slash at its end; NULL if
 * it is none.
 */
extern char *swarm_s3_split_folder(const char *endpoint);

/* s3_folder.c: prepare() of requests that a folder answers */
extern void swarm_s3_folder_answer(SwarmNetRequest *request);

#endif							/* SWARM_S3_S3_INT_H */
