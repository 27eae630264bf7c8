/*
 * upload_source.c
 *	  Where the bytes of a file come from.
 *
 * Whatever it is, it becomes something that can be read at any place, any
 * number of times, without a transaction: a file of the server is opened,
 * everything else is copied in slices, within one snapshot, to a spool.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/detoast.h"
#include "access/genam.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "libpq/libpq-fs.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/large_object.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/spi.h"
#include "upload/upload_int.h"

#define SLICE			(256 * 1024)

static int	open_file(const char *path, int64 *size);
static bool copy_file(SwarmSpool *spool, const char *path, SwarmNetBody *body);
static void copy_value(SwarmSpool *spool, Datum value);
static void copy_bytea(SwarmSpool *spool, const SwarmSource *source);
static void copy_large_object(SwarmSpool *spool, Oid oid);
static int64 large_object_size(Oid oid);
static int64 column_size(const SwarmSource *source);
static void copy_column(SwarmSpool *spool, const SwarmSource *source);
static char *column_query(const SwarmSource *source, const char *what, bool *is_bytea);
static char *key_column(Oid relation);
static void copy_query(SwarmSpool *spool, const SwarmSource *source);
static Oid	oid_of(const SwarmSource *source, const char *field);

/* ------------------------------------------------------------------------
 * Sources
 * ------------------------------------------------------------------------ */

char *
swarm_json_text(Jsonb *object, const char *field)
{
	JsonbValue	buffer;
	JsonbValue *v;

	if (object == NULL || !JB_ROOT_IS_OBJECT(object))
		return NULL;
	v = getKeyJsonValueFromContainer(&object->root, field, strlen(field), &buffer);
	if (v == NULL || v->type == jbvNull)
		return NULL;
	if (v->type == jbvString)
		return pnstrdup(v->val.string.val, v->val.string.len);
	if (v->type == jbvNumeric)
		return DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(v->val.numeric)));
	if (v->type == jbvBool)
		return pstrdup(v->val.boolean ? "true" : "false");
	return NULL;
}

static Oid
oid_of(const SwarmSource *source, const char *field)
{
	char	   *text = swarm_json_text(source->ref, field);

	if (text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a source of kind \"%s\" needs \"%s\"", source->kind, field)));
	return DatumGetObjectId(DirectFunctionCall1(oidin, CStringGetDatum(text)));
}

static char *
text_of(const SwarmSource *source, const char *field)
{
	char	   *text = swarm_json_text(source->ref, field);

	if (text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a source of kind \"%s\" needs \"%s\"", source->kind, field)));
	return text;
}

int64
swarm_source_check(const SwarmSource *source, const char *name)
{
	if (strcmp(source->kind, "bytea") == 0)
	{
		if (source->data == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("file \"%s\" has no data", name)));
		return toast_raw_datum_size(PointerGetDatum(source->data)) - VARHDRSZ;
	}
	if (strcmp(source->kind, "large_object") == 0)
		return large_object_size(oid_of(source, "oid"));
	if (strcmp(source->kind, "file") == 0)
	{
		int64		size;

		close(open_file(text_of(source, "path"), &size));
		return size;
	}
	if (strcmp(source->kind, "column") == 0)
		return column_size(source);
	if (strcmp(source->kind, "query") == 0)
	{
		(void) text_of(source, "sql");
		swarm_check_format(text_of(source, "format"));
		return -1;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("source of file \"%s\" is of unknown kind \"%s\"", name, source->kind),
			 errhint("A source is a bytea, or what swarm.from_large_object(), from_file(), from_column() or from_query() return.")));
}

int64
swarm_source_memory(const SwarmSource *source, int64 size, const char *compress)
{
	if (source->spool != NULL || size < 0 || (strcmp(source->kind, "file") == 0 && compress == NULL))
		return 0;
	return size;
}

void
swarm_source_open(const SwarmSource *source, MemoryContext context, int64 limit,
				  int64 size, const char *compress, SwarmNetBody *body)
{
	SwarmSpool *spool;

	if (source->spool != NULL)
	{
		swarm_spool_finish(source->spool, body);
		return;
	}
	spool = swarm_spool_create(context, limit, compress ? swarm_codec_begin(context, compress, true) : NULL);
	if (strcmp(source->kind, "file") == 0)
	{
		if (copy_file(spool, text_of(source, "path"), body))
			return;
		swarm_spool_finish(spool, body);
		return;
	}
	if (!swarm_spool_fits(size) || !swarm_spool_has_room(size))
		swarm_spool_to_file(spool);
	if (strcmp(source->kind, "bytea") == 0)
		copy_bytea(spool, source);
	else if (strcmp(source->kind, "large_object") == 0)
		copy_large_object(spool, oid_of(source, "oid"));
	else if (strcmp(source->kind, "column") == 0)
		copy_column(spool, source);
	else
		copy_query(spool, source);
	swarm_spool_finish(spool, body);
}

/* ---- files ---- */

/* open_file: a regular file of the server, for those who may read such. */
static int
open_file(const char *path, int64 *size)
{
	struct stat st;
	int			fd;

	if (!has_privs_of_role(GetUserId(), ROLE_PG_READ_SERVER_FILES))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to read files of the server"),
				 errhint("It needs the rights of role pg_read_server_files.")));
	if (!is_absolute_path(path))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("path \"%s\" is not absolute", path)));
	/* not blocking: it may be a pipe, which is found out only then */
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not open file \"%s\": %m", path)));
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
	{
		close(fd);
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE), errmsg("\"%s\" is not a regular file", path)));
	}
	*size = st.st_size;
	return fd;
}

/*
 * copy_file: true if the spool is the file itself, which is read when it is
 * sent; false if it has passed a codec.
 */
static bool
copy_file(SwarmSpool *spool, const char *path, SwarmNetBody *body)
{
	int64		size;
	int			fd = open_file(path, &size);

	if (spool->limit > 0 && size > spool->limit)
	{
		close(fd);
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("file exceeds %dMB limit", (int) (spool->limit / (1024 * 1024))),
				 errhint("The limit is pg_swarm.s3_max_file_size.")));
	}
	if (spool->codec == NULL)
	{
		swarm_spool_adopt(spool, fd, size, body);
		return true;
	}
	PG_TRY();
	{
		swarm_spool_copy(spool, fd, size);
	}
	PG_FINALLY();
	{
		close(fd);
	}
	PG_END_TRY();
	return false;
}

/* ---- bytea ---- */

/*
 * copy_value: a bytea, in slices where it is stored so.  A compressed one has
 * to be had whole.  The row it is of must be visible to the active snapshot.
 */
static void
copy_value(SwarmSpool *spool, Datum value)
{
	struct varlena *data = (struct varlena *) DatumGetPointer(value);
	struct varatt_external pointer;
	Relation	toast;
	struct varlena *buffer = NULL;	/* for what is not kept in blocks */

	if (!VARATT_IS_EXTERNAL_ONDISK(data))
	{
		bytea	   *whole = DatumGetByteaPP(value);

		swarm_spool_write(spool, VARDATA_ANY(whole), VARSIZE_ANY_EXHDR(whole));
		return;
	}
	VARATT_EXTERNAL_GET_POINTER(pointer, data);
	if (VARATT_EXTERNAL_IS_COMPRESSED(pointer))
	{
		bytea	   *whole = DatumGetByteaPP(value);

		swarm_spool_write(spool, VARDATA_ANY(whole), VARSIZE_ANY_EXHDR(whole));
		pfree(whole);
		return;
	}

	toast = table_open(pointer.va_toastrelid, AccessShareLock);
	for (int32 at = 0, size = VARATT_EXTERNAL_GET_EXTSIZE(pointer); at < size;)
	{
		int32		n = Min(SWARM_NET_BLOCK, size - at);
		struct varlena *block = swarm_spool_varlena(spool);
		struct varlena *slice = block;

		if (block == NULL && buffer == NULL)
			buffer = palloc(SWARM_NET_BLOCK + VARHDRSZ);
		if (block == NULL)
			slice = buffer;
		SET_VARSIZE(slice, n + VARHDRSZ);
		table_relation_fetch_toast_slice(toast, pointer.va_valueid, size, at, n, slice);
		if (block != NULL)
			swarm_spool_filled(spool, n);
		else
			swarm_spool_write(spool, VARDATA(slice), n);
		CHECK_FOR_INTERRUPTS();
		at += n;
	}
	table_close(toast, AccessShareLock);
}

/* copy_bytea: from the argument, or from the row it was put into. */
static void
copy_bytea(SwarmSpool *spool, const SwarmSource *source)
{
	Oid			types[] = {INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(source->batch), Int32GetDatum(source->no)};
	SwarmSpi	spi;
	bool		isnull = true;
	Datum		data = (Datum) 0;

	if (source->data != NULL)
	{
		copy_value(spool, PointerGetDatum(source->data));
		return;
	}
	swarm_spi_begin(&spi);
	if (swarm_spi_query("SELECT data FROM swarm._s3_file WHERE batch = $1 AND no = $2",
						2, types, values, NULL) > 0)
		data = swarm_spi_column(0, 1, &isnull);
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA), errmsg("the data of the file are not there any more")));
	copy_value(spool, data);
	swarm_spi_end(&spi);
}

/* ---- large objects ---- */

/*
 * The server keeps its relations open until the transaction ends, and closes
 * them there only for its own functions: so we do it, also after an error,
 * which may cost a subtransaction only.
 */
static int64
large_object_size(Oid oid)
{
	int64		size = 0;

	PG_TRY();
	{
		LargeObjectDesc *lo = inv_open(oid, INV_READ, CurrentMemoryContext);

		size = inv_seek(lo, 0, SEEK_END);
		inv_close(lo);
	}
	PG_FINALLY();
	{
		close_lo_relation(true);
	}
	PG_END_TRY();
	return size;
}

static void
copy_large_object(SwarmSpool *spool, Oid oid)
{
	char	   *buffer = palloc(SLICE);
	int			n;

	PG_TRY();
	{
		LargeObjectDesc *lo = inv_open(oid, INV_READ, CurrentMemoryContext);

		while ((n = inv_read(lo, buffer, SLICE)) > 0)
		{
			CHECK_FOR_INTERRUPTS();
			swarm_spool_write(spool, buffer, n);
		}
		inv_close(lo);
	}
	PG_FINALLY();
	{
		close_lo_relation(true);
	}
	PG_END_TRY();
	pfree(buffer);
}

/* ---- a column of a row ---- */

/*
 * column_query: SELECT what FROM relation WHERE key = $1, in which % stands
 * for the column.
 */
static char *
column_query(const SwarmSource *source, const char *what, bool *is_bytea)
{
	Oid			relation = oid_of(source, "relation");
	char	   *column = text_of(source, "column");
	char	   *key = swarm_json_text(source->ref, "key_column");
	char	   *name = get_rel_name(relation);
	AttrNumber	attnum;
	AttrNumber	key_attnum;
	StringInfoData sql;

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE), errmsg("relation with OID %u does not exist", relation)));
	if (key == NULL)
		key = key_column(relation);
	attnum = get_attnum(relation, column);
	key_attnum = get_attnum(relation, key);
	if (attnum == InvalidAttrNumber || key_attnum == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist",
						attnum == InvalidAttrNumber ? column : key, name)));
	*is_bytea = getBaseType(get_atttype(relation, attnum)) == BYTEAOID;
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (const char *p = what; *p; p++)
	{
		if (*p == '%')
			appendStringInfo(&sql, "t.%s%s", quote_identifier(column), *is_bytea ? "" : "::pg_catalog.text");
		else
			appendStringInfoChar(&sql, *p);
	}
	appendStringInfo(&sql, " FROM %s t WHERE t.%s = $1::%s",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(relation)), name),
					 quote_identifier(key), format_type_be_qualified(get_atttype(relation, key_attnum)));
	return sql.data;
}

/* key_column: the primary key's only column. */
static char *
key_column(Oid relation)
{
	Relation	rel = relation_open(relation, AccessShareLock);
	Oid			index;
	char	   *column = NULL;

	list_free(RelationGetIndexList(rel));	/* it sets rd_pkindex */
	index = rel->rd_pkindex;
	if (OidIsValid(index))
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
		Form_pg_index form = (Form_pg_index) GETSTRUCT(tuple);

		if (form->indnkeyatts == 1)
			column = get_attname(relation, form->indkey.values[0], false);
		ReleaseSysCache(tuple);
	}
	relation_close(rel, AccessShareLock);
	if (column == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("relation \"%s\" has no primary key of one column", get_rel_name(relation)),
				 errhint("Name the column that identifies the row: from_column(..., key_column => ...).")));
	return column;
}

/* column_value: run such a query; exactly one row, not NULL. */
static Datum
column_value(const SwarmSource *source, const char *sql)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(text_of(source, "key"))};
	bool		isnull;
	Datum		value;
	int			rc = SPI_execute_with_args(sql, 1, types, values, NULL, true, 2);

	if (rc != SPI_OK_SELECT)
		elog(ERROR, "could not read a column: %s", SPI_result_code_string(rc));
	if (SPI_processed != 1)
		ereport(ERROR,
				(errcode(SPI_processed == 0 ? ERRCODE_NO_DATA_FOUND : ERRCODE_TOO_MANY_ROWS),
				 errmsg(SPI_processed == 0 ? "there is no row with key \"%s\"" :
						"there is more than one row with key \"%s\"", text_of(source, "key"))));
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("column \"%s\" of the row with key \"%s\" is null", text_of(source, "column"),
						text_of(source, "key"))));
	return value;
}

static int64
column_size(const SwarmSource *source)
{
	bool		is_bytea;
	char	   *sql = column_query(source, "pg_catalog.octet_length(%)", &is_bytea);
	int64		size;

	SPI_connect();
	size = DatumGetInt32(column_value(source, sql));
	SPI_finish();
	return size;
}

static void
copy_column(SwarmSpool *spool, const SwarmSource *source)
{
	bool		is_bytea;
	char	   *sql = column_query(source, "%", &is_bytea);

	SPI_connect();
	if (is_bytea)
		copy_value(spool, column_value(source, sql));
	else
	{
		char	   *value = TextDatumGetCString(column_value(source, sql));
		char	   *utf8 = pg_server_to_any(value, strlen(value), PG_UTF8);

		swarm_spool_write(spool, utf8, strlen(utf8));
	}
	SPI_finish();
}

/* ---- queries ---- */

/* copy_query: with the search_path of the session that asked for it. */
static void
copy_query(SwarmSpool *spool, const SwarmSource *source)
{
	int			level = NewGUCNestLevel();
	char	   *path = swarm_json_text(source->ref, "search_path");

	if (path != NULL)
		(void) set_config_option("search_path", path, PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	swarm_source_query(spool, text_of(source, "sql"), text_of(source, "format"), NULL);
	AtEOXact_GUC(true, level);
}
