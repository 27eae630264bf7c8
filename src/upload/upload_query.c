/*
 * upload_query.c
 *	  What a query returns, as the bytes of a file.
 *
 * COPY's formats are made by COPY itself, into a temporary file by its name;
 * a line of JSON is made of each row here.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "access/htup_details.h"
#include "commands/copy.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_node.h"
#include "storage/fd.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "base/compat.h"
#include "upload/upload_int.h"

#define ROWS			100

/* Where COPY's rows pass on their way to it. */
typedef struct Watch
{
	DestReceiver pub;
	DestReceiver *copy;
	int			fd;				/* of the file it writes */
	int64		limit;			/* bytes, 0 = none */
} Watch;

/* Until the query of a COPY begins to run. */
static Watch *watch_next = NULL;
static ExecutorRun_hook_type run_before = NULL;

static int64 run_copy(CopyToState copy, int fd, int64 limit);
static void watch_run(SWARM_EXECUTOR_RUN_PARAMETERS);
static void watch_startup(DestReceiver *self, int operation, TupleDesc desc);
static bool watch_row(TupleTableSlot *slot, DestReceiver *self);
static void watch_shutdown(DestReceiver *self);
static void watch_destroy(DestReceiver *self);
static int64 check_size(int fd, int64 limit);
static void query_to_lines(SwarmSpool *spool, const char *sql);

void
swarm_check_format(const char *format)
{
	if (strcmp(format, "csv") != 0 && strcmp(format, "text") != 0 &&
		strcmp(format, "binary") != 0 && strcmp(format, "json") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown format \"%s\"", format),
				 errhint("Formats are csv, text, binary and json (an object a line).")));
}

static const char *const copy_options[] = {"header", "delimiter", "null", "quote", "escape"};

/*
 * check_copy_options: one that is not COPY's must not be left out in silence,
 * least of all one that asks for encryption.
 */
static void
check_copy_options(Jsonb *options)
{
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;

	if (options == NULL)
		return;
	if (!JB_ROOT_IS_OBJECT(options))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options must be a JSON object")));
	it = JsonbIteratorInit(&options->root);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		bool		known = false;

		if (token != WJB_KEY)
			continue;
		for (int i = 0; i < lengthof(copy_options); i++)
			known |= strlen(copy_options[i]) == v.val.string.len &&
				strncmp(copy_options[i], v.val.string.val, v.val.string.len) == 0;
		if (!known)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unknown option \"%s\"", pnstrdup(v.val.string.val, v.val.string.len)),
					 errhint("Options are header, delimiter, null, quote, escape, and for s3_export() compress. Those of requests belong to s3_upload() with from_query().")));
	}
}

/*
 * swarm_copy_options: those of COPY for a format; from options: header,
 * delimiter, null, quote, escape.
 */
List *
swarm_copy_options(const char *format, Jsonb *options)
{
	List	   *list = list_make1(makeDefElem("format", (Node *) makeString(pstrdup(format)), -1));

	check_copy_options(options);
	if (strcmp(format, "binary") != 0)
		list = lappend(list, makeDefElem("encoding", (Node *) makeString("UTF8"), -1));
	for (int i = 0; i < lengthof(copy_options); i++)
	{
		char	   *value = swarm_json_text(options, copy_options[i]);

		if (value != NULL)
			list = lappend(list, makeDefElem(pstrdup(copy_options[i]), (Node *) makeString(value), -1));
	}
	return list;
}

void
swarm_source_query(SwarmSpool *spool, const char *sql, const char *format, Jsonb *options)
{
	ParseState *pstate;
	List	   *parsed;
	RawStmt    *raw;
	CopyToState copy;
	SwarmSpool *copied = spool;
	int64		size;

	swarm_check_format(format);
	check_copy_options(options);
	parsed = pg_parse_query(sql);
	if (list_length(parsed) != 1 || !IsA(linitial_node(RawStmt, parsed)->stmt, SelectStmt) ||
		((SelectStmt *) linitial_node(RawStmt, parsed)->stmt)->intoClause != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("the query must be one SELECT")));
	raw = linitial_node(RawStmt, parsed);
	if (strcmp(format, "json") == 0)
	{
		query_to_lines(spool, sql);
		return;
	}

	/* COPY writes into a temporary file by its name */
	if (spool->codec != NULL)
		copied = swarm_spool_create(CurrentMemoryContext, 0, NULL);
	swarm_spool_to_file(copied);
	pstate = make_parsestate(NULL);
	pstate->p_sourcetext = sql;
	copy = swarm_begin_copy_to(pstate, raw,
							   psprintf("%s/%s", DataDir, FilePathName(copied->file)),
							   swarm_copy_options(format, options));
	size = run_copy(copy, FileGetRawDesc(copied->file), spool->limit);
	free_parsestate(pstate);
	if (copied == spool)
	{
		spool->length = size;
		return;
	}
	swarm_spool_copy(spool, FileGetRawDesc(copied->file), size);
	FileClose(copied->file);
	copied->file = -1;
}

/*
 * run_copy: run and end it; returns the size of its file.  Its rows are
 * watched, so that the file is not much larger than it may be: COPY itself
 * knows no limit.
 */
static int64
run_copy(CopyToState copy, int fd, int64 limit)
{
	Watch		watch = {.fd = fd, .limit = limit};

	run_before = ExecutorRun_hook;
	PG_TRY();
	{
		watch_next = &watch;
		ExecutorRun_hook = watch_run;
		DoCopyTo(copy);
	}
	PG_FINALLY();
	{
		if (watch_next != NULL)
			ExecutorRun_hook = run_before;
		watch_next = NULL;
	}
	PG_END_TRY();
	EndCopyTo(copy);
	return check_size(fd, limit);
}

/*
 * watch_run: ExecutorRun_hook, once: whatever the query runs is not watched.
 */
static void
watch_run(SWARM_EXECUTOR_RUN_PARAMETERS)
{
	Watch	   *watch = watch_next;

	watch_next = NULL;
	ExecutorRun_hook = run_before;
	watch->copy = query->dest;
	watch->pub.rStartup = watch_startup;
	watch->pub.receiveSlot = watch_row;
	watch->pub.rShutdown = watch_shutdown;
	watch->pub.rDestroy = watch_destroy;
	watch->pub.mydest = watch->copy->mydest;
	query->dest = &watch->pub;
	if (run_before)
		run_before(SWARM_EXECUTOR_RUN_ARGUMENTS);
	else
		standard_ExecutorRun(SWARM_EXECUTOR_RUN_ARGUMENTS);
	query->dest = watch->copy;
}

static void
watch_startup(DestReceiver *self, int operation, TupleDesc desc)
{
	DestReceiver *copy = ((Watch *) self)->copy;

	copy->rStartup(copy, operation, desc);
}

static bool
watch_row(TupleTableSlot *slot, DestReceiver *self)
{
	Watch	   *watch = (Watch *) self;

	(void) check_size(watch->fd, watch->limit);
	return watch->copy->receiveSlot(slot, watch->copy);
}

static void
watch_shutdown(DestReceiver *self)
{
	DestReceiver *copy = ((Watch *) self)->copy;

	copy->rShutdown(copy);
}

static void
watch_destroy(DestReceiver *self)
{
}

/* check_size: of the file, which is no file of ours to those who write it. */
static int64
check_size(int fd, int64 limit)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not read a temporary file: %m")));
	if (limit > 0 && st.st_size > limit)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("file exceeds %dMB limit", (int) (limit / (1024 * 1024))),
				 errhint("The limit is pg_swarm.s3_max_file_size.")));
	if (temp_file_limit >= 0 && st.st_size > temp_file_limit * INT64CONST(1024))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("temporary file size exceeds temp_file_limit (%dkB)", temp_file_limit)));
	return st.st_size;
}

/* query_to_lines: each row as a JSON object on a line. */
static void
query_to_lines(SwarmSpool *spool, const char *sql)
{
	Portal		portal;
	MemoryContext page;

	SPI_connect();
	page = AllocSetContextCreate(CurrentMemoryContext, "pg_swarm rows", ALLOCSET_DEFAULT_SIZES);
	portal = SPI_cursor_open_with_args(NULL, sql, 0, NULL, NULL, NULL, true, 0);
	BlessTupleDesc(portal->tupDesc);
	for (;;)
	{
		MemoryContext old;

		SPI_cursor_fetch(portal, true, ROWS);
		if (SPI_processed == 0)
			break;
		old = MemoryContextSwitchTo(page);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			Datum		row = heap_copy_tuple_as_datum(SPI_tuptable->vals[i], portal->tupDesc);
			Datum		json = OidFunctionCall1(F_ROW_TO_JSON_RECORD, row);
			char	   *line = TextDatumGetCString(json);
			char	   *utf8 = pg_server_to_any(line, strlen(line), PG_UTF8);

			swarm_spool_write(spool, utf8, strlen(utf8));
			swarm_spool_write(spool, "\n", 1);
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(page);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	SPI_finish();
}
