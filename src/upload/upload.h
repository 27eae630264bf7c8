/*
 * upload.h
 *	  Uploads to S3: batches of files, in the transaction that asks for them.
 */
#ifndef SWARM_UPLOAD_UPLOAD_H
#define SWARM_UPLOAD_UPLOAD_H

/* Settings and shared memory; called from _PG_init. */
extern void swarm_upload_init(void);

#endif							/* SWARM_UPLOAD_UPLOAD_H */
