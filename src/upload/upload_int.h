/*
 * upload_int.h
 *	  Private parts of module upload.
 */
#ifndef SWARM_UPLOAD_UPLOAD_INT_H
#define SWARM_UPLOAD_UPLOAD_INT_H

#include "fmgr.h"
#include "datatype/timestamp.h"
#include "utils/jsonb.h"

#include "s3/s3.h"
#include "upload/upload.h"

#define UPLOAD_CODE		64
#define UPLOAD_ID_MAX	1024

extern int	swarm_s3_max_files;
extern int	swarm_s3_max_file_kb;
extern int	swarm_s3_part_kb;

/* ------------------------------------------------------------------------
 * Sources (upload_source.c)
 * ------------------------------------------------------------------------ */

/* Where the bytes of a file come from; the fields of swarm.s3_source. */
typedef struct SwarmSource
{
	char	   *kind;			/* bytea, large_object, file, column, query */
	bytea	   *data;			/* of bytea; may be toasted */
	Jsonb	   *ref;			/* of the others */
	int64		batch;			/* bytea in a row of _s3_file: which */
	int			no;
	struct SwarmSpool *spool;	/* kind spool: it is there already */
} SwarmSource;

/*
 * gzip and zstd (upload_codec.c).  What comes out goes to a sink.
 */
typedef struct SwarmCodec SwarmCodec;
typedef void (*SwarmCodecSink) (void *arg, const char *data, size_t length);

extern bool swarm_codec_known(const char *name);
extern void swarm_codec_check(const char *name);
extern SwarmCodec *swarm_codec_begin(MemoryContext parent, const char *name, bool compress);
extern void swarm_codec_write(SwarmCodec *codec, const char *data, size_t length,
							  SwarmCodecSink sink, void *arg);
extern void swarm_codec_end(SwarmCodec *codec, SwarmCodecSink sink, void *arg);
extern void swarm_codec_free(SwarmCodec *codec);

/*
 * Bytes that were collected (upload_spool.c): in blocks of memory while the
 * process has some, then in a temporary file that has no name any more.  Ends
 * with its memory context.
 */
typedef struct SwarmSpool
{
	MemoryContext context;
	char	  **blocks;			/* of SWARM_NET_BLOCK bytes */
	int			nblocks;
	int			room;			/* for so many of them */
	int			file;			/* File while it is written, or -1 */
	int			fd;				/* or -1 */
	int64		length;			/* what is kept */
	int64		taken;			/* what has come */
	int64		limit;			/* of that */
	SwarmCodec *codec;			/* that it passes, or NULL */
	MemoryContextCallback callback;
} SwarmSpool;

/* With a codec, which the spool frees, what is written passes through it. */
extern SwarmSpool *swarm_spool_create(MemoryContext context, int64 limit, SwarmCodec *codec);
extern void swarm_spool_write(SwarmSpool *spool, const char *data, size_t length);
extern struct varlena *swarm_spool_varlena(SwarmSpool *spool);
extern void swarm_spool_filled(SwarmSpool *spool, size_t length);
extern void swarm_spool_copy(SwarmSpool *spool, int fd, int64 length);
extern void swarm_spool_finish(SwarmSpool *spool, SwarmNetBody *body);
extern void swarm_spool_to_file(SwarmSpool *spool);
extern void swarm_spool_adopt(SwarmSpool *spool, int fd, int64 length, SwarmNetBody *body);

/* An empty spool that is a file already, for an answer to go to. */
extern int	swarm_spool_descriptor(SwarmSpool *spool);

extern bool swarm_spool_fits(int64 length);
extern bool swarm_spool_has_room(int64 length);

/*
 * Check a source as the current user, before anything is sent.  Returns its
 * size, -1 if only reading it would tell.
 */
extern int64 swarm_source_check(const SwarmSource *source, const char *name);

/*
 * Read a source as the current user, in a transaction; ends with context.
 * size: what is known of it, or -1; compress: gzip, zstd or NULL.
 */
extern void swarm_source_open(const SwarmSource *source, MemoryContext context, int64 limit,
							  int64 size, const char *compress, SwarmNetBody *body);

/* What opening it will keep in memory, as far as is known: 0 for a file. */
extern int64 swarm_source_memory(const SwarmSource *source, int64 size, const char *compress);

/* Write a query's result to a spool. */
extern void swarm_source_query(SwarmSpool *spool, const char *sql, const char *format,
							   Jsonb *options);
extern List *swarm_copy_options(const char *format, Jsonb *options);
extern void swarm_check_format(const char *format);

/* A string field of a JSON object, or NULL. */
extern char *swarm_json_text(Jsonb *object, const char *field);

/* ------------------------------------------------------------------------
 * A run of uploads (upload_run.c)
 * ------------------------------------------------------------------------ */

/* The order is that of the events below it; swarm_upload_edges has the ways. */
typedef enum SwarmFileState
{
	FILE_WAITING,				/* to be opened */
	FILE_SEARCHING,				/* has a lost run begun a multipart upload? */
	FILE_LISTING,				/* which parts has it sent? */
	FILE_CLEANING,				/* what a lost run has left is aborted first */
	FILE_PUTTING,
	FILE_CREATING,				/* a multipart upload */
	FILE_NOTING,				/* its id must be committed */
	FILE_PARTS,
	FILE_COMPLETING,
	FILE_CHECKING,				/* is it complete? */
	FILE_ABORTING,
	FILE_DONE,
	FILE_FAILED,
	FILE_CANCELLED,
	FILE_STATES
} SwarmFileState;

typedef enum SwarmFileEvent
{
	FILE_EVENT_STALE,			/* an upload of a lost run must go */
	FILE_EVENT_RESUME,			/* a lost run left an upload id */
	FILE_EVENT_SEARCH,			/* there was one that may have begun an upload */
	FILE_EVENT_SMALL,
	FILE_EVENT_LARGE,
	FILE_EVENT_OK,
	FILE_EVENT_GONE,			/* the server does not know the upload any
								 * more */
	FILE_EVENT_FAIL,
	FILE_EVENT_MOVE,			/* the same, but another server may take it */
	FILE_EVENT_STOP				/* cancelled */
} SwarmFileEvent;

typedef struct SwarmFileEdge
{
	SwarmFileState from;
	SwarmFileEvent event;
	SwarmFileState to;
	const char *why;
} SwarmFileEdge;

extern const SwarmFileEdge swarm_upload_edges[];
extern const int swarm_upload_nedges;
extern const char *swarm_file_state_name(SwarmFileState state);
extern const char *swarm_file_event_name(SwarmFileEvent event);

typedef struct SwarmUpload SwarmUpload;

typedef struct SwarmUploadFile
{
	SwarmUpload *upload;
	int			no;
	char	   *name;			/* as given */
	char	   *key;
	char	   *content_type;
	Jsonb	   *metadata;
	SwarmSource source;
	int64		size;			/* -1 = not known yet */
	SwarmS3Server *server;		/* where it goes; NULL: not decided yet */
	char	   *server_name;	/* or NULL: the batch's */
	bool		moved;			/* to the fallback, in this run */

	SwarmFileState state;
	SwarmFileState outcome;		/* after FILE_ABORTING */
	bool		dirty;			/* the table does not know yet */
	char	   *upload_id;		/* to be completed or aborted */
	MemoryContext context;		/* while it is under way */
	SwarmNetBody body;
	int64		part_size;
	int			parts;
	int			next_part;
	int			parts_listed;	/* up to which, of a lost run */
	int			searches;
	int			parts_under_way;
	int			parts_done;
	char	  **etags;
	int64		bytes_done;		/* of finished parts */
	List	   *requests;		/* under way */
	int			progress;		/* place in shared memory, or -1 */
	bool		reloaded;		/* credentials were read again for it */

	char	   *etag;
	int			attempts;
	int			attempts_before;	/* of them, before it was moved */
	int			status;
	char		code[UPLOAD_CODE];
	char		error[256];
	int64		started_ms;		/* monotonic; 0 = not started */
	int64		ms;
} SwarmUploadFile;

/* A multipart upload that is to be aborted, at a server where its file is not any more. */
typedef struct SwarmUploadLeft
{
	int			no;
	char	   *key;
	char	   *server_name;
	char	   *upload_id;
	bool		stored;			/* in the table */
	bool		aborted;
	SwarmUploadFile *file;		/* while that is tried */
} SwarmUploadLeft;

/* A batch of files on their way to one bucket. */
struct SwarmUpload
{
	MemoryContext context;
	int64		batch;			/* 0: not in a table */
	char	   *server_name;
	SwarmS3Server *server;
	SwarmS3Server *fallback;	/* or NULL */
	char	   *fallback_fault; /* why there is none, until it is said */
	List	   *other_servers;	/* where lost runs have sent files */
	List	   *left;			/* of SwarmUploadLeft */
	char	   *bucket;
	Jsonb	   *options;
	List	   *headers;		/* of every object, of SwarmS3Pair */
	bool		crc32c;
	bool		sha256;
	const char *compress;		/* gzip, zstd or NULL */
	int			nfiles;
	SwarmUploadFile *files;
	int			first;			/* those before it have been stored with their
								 * outcome */
	int			top;			/* those from it on have not been opened */
	int			unfinished;
	int			open;			/* neither waiting nor finished */
	int64		idle_ms;		/* waited for the network without an event */
	bool		cancelled;
	bool		in_transaction; /* the caller's, that is not left */
	int			place;			/* in shared memory, or -1 */
	List	   *expired;		/* requests that wait for new credentials */
	TimestampTz since;			/* when the first run began; 0 = this is it */
	int64		started_ms;
	int64		flush_ms;		/* dirty files since; 0 = none */
	int64		progress_ms;
};

/* A request of a file, and what it is for. */
typedef struct SwarmUploadStep
{
	SwarmUploadFile *file;
	int			part;			/* from 1; 0 = no part */
	MemoryContext context;
	SwarmNetRequest *request;
	SwarmS3Call call;
} SwarmUploadStep;

/* upload_run.c */
extern bool swarm_upload_event(SwarmUploadFile *file, SwarmFileEvent what);
extern void swarm_upload_failed(SwarmUploadFile *file);

/* upload_answer.c */
extern void swarm_upload_answered(SwarmNetRequest *request);

/* upload_send.c */
extern void swarm_upload_send(SwarmUploadFile *file);
extern void swarm_upload_send_parts(SwarmUploadFile *file);
extern void swarm_upload_drop_requests(SwarmUploadFile *file);
extern SwarmNetBody swarm_upload_part(const SwarmUploadFile *file, int part);

/* upload_resume.c */
extern SwarmFileEvent swarm_upload_searched(SwarmUploadStep *step);
extern bool swarm_upload_listed(SwarmUploadStep *step);
extern bool swarm_upload_etag_fits(SwarmUploadStep *step, const char *etag);

/* upload_fallback.c */
extern void swarm_upload_read_fallback(SwarmUpload *upload);
extern void swarm_upload_read_servers(SwarmUpload *upload);
extern void swarm_upload_choose_server(SwarmUploadFile *file);
extern bool swarm_upload_can_move(SwarmUploadFile *file);
extern void swarm_upload_move(SwarmUploadFile *file);
extern int	swarm_upload_abort_left(SwarmUpload *upload, List *left);
extern void swarm_upload_end_here(SwarmUpload *upload);

extern void swarm_upload_options(SwarmUpload *upload, Jsonb *options);
extern bool swarm_upload_option_timestamped(Jsonb *options);
extern void swarm_upload_check_metadata(Jsonb *metadata);
extern void swarm_upload_run(SwarmUpload *upload);
extern void swarm_upload_await_ids(SwarmUpload *upload);
extern void swarm_upload_drop(SwarmUpload *upload);
extern Jsonb *swarm_upload_result(SwarmUpload *upload, int64 ms, bool finished);

/* upload_store.c: the tables; store() between begin and end of a transaction */
extern void swarm_upload_enter(SwarmUpload *upload);
extern void swarm_upload_leave(SwarmUpload *upload, bool durable);
extern void swarm_upload_store(SwarmUpload *upload);
extern SwarmUpload *swarm_upload_load(MemoryContext context, int64 batch, Oid *owner, int64 *job,
									  bool *finished, int64 *ms);
extern List *swarm_upload_load_left(SwarmUpload *upload);
extern void swarm_upload_forget_left(SwarmUpload *upload, List *left);
extern void swarm_upload_finish(SwarmUpload *upload);
extern void swarm_upload_prune(TimestampTz before);
extern int64 swarm_upload_enqueue(int64 batch, bool clean);

/* ------------------------------------------------------------------------
 * Shared memory (upload.c)
 * ------------------------------------------------------------------------ */

/* A file under way, for the view. */
typedef struct SwarmUploadProgress
{
	Oid			database;		/* InvalidOid = free */
	int64		batch;
	int			no;
	int			pid;
	int64		sent;
	int64		total;
	int64		ms;
	char		step[16];
} SwarmUploadProgress;

extern int	swarm_upload_register(int64 batch); /* -1: runs already, or no
												 * room */
extern void swarm_upload_unregister(int place);
extern bool swarm_upload_stop_asked(int place);
extern void swarm_upload_ask_stop_at_commit(int64 batch);
extern int	swarm_upload_progress_take(int64 batch, int no);
extern void swarm_upload_progress_set(int place, int64 sent, int64 total, int64 ms, const char *step);
extern void swarm_upload_progress_give(int place);
extern int	swarm_upload_progress_copy(SwarmUploadProgress **copies);

/* ------------------------------------------------------------------------
 * Hooks of users (upload_hook.c)
 * ------------------------------------------------------------------------ */

/* Before: 38000 if one refuses.  After: every file has its outcome. */
extern void swarm_upload_before(const SwarmUpload *upload);
extern void swarm_upload_after(const SwarmUpload *upload);

#endif							/* SWARM_UPLOAD_UPLOAD_INT_H */
