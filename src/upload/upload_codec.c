/*
 * upload_codec.c
 *	  gzip and zstd, a piece at a time.
 *
 * Each is there when its header was when the extension was built (Makefile);
 * the server's own libraries are used, which are loaded already.
 */
#include "postgres.h"

#ifdef SWARM_WITH_ZLIB
#include <zlib.h>
#endif
#ifdef SWARM_WITH_ZSTD
#include <zstd.h>
#endif

#include "miscadmin.h"
#include "utils/memutils.h"

#include "upload/upload_int.h"

#define PIECE	(64 * 1024)

typedef enum Kind
{
	GZIP,
	ZSTD
} Kind;

struct SwarmCodec
{
	Kind		kind;
	bool		compress;
	bool		ended;			/* what is decompressed has had an end */
	bool		begun;
	MemoryContext context;		/* its own */
	char	   *out;			/* PIECE bytes */
#ifdef SWARM_WITH_ZLIB
	z_stream	gzip;
#endif
#ifdef SWARM_WITH_ZSTD
	ZSTD_CCtx  *compressor;
	ZSTD_DCtx  *decompressor;
#endif
	MemoryContextCallback callback;
};

/* What a step of a codec says. */
typedef enum Outcome
{
	MORE,						/* it wants input, or room for output */
	ENDED,						/* a member or frame ended */
	DAMAGED
} Outcome;

static void start(SwarmCodec *codec);
static void stop(void *arg);
static Outcome step(SwarmCodec *codec, const char *data, size_t length, bool last,
					size_t *used, size_t *made);

/*
 * swarm_codec_known: may `name` stand in Content-Encoding for one of ours?
 */
bool
swarm_codec_known(const char *name)
{
	return pg_strcasecmp(name, "gzip") == 0 || pg_strcasecmp(name, "zstd") == 0;
}

/* swarm_codec_check: error 0A000 where it was left out of the library. */
void
swarm_codec_check(const char *name)
{
	bool		built = false;

#ifdef SWARM_WITH_ZLIB
	built |= pg_strcasecmp(name, "gzip") == 0;
#endif
#ifdef SWARM_WITH_ZSTD
	built |= pg_strcasecmp(name, "zstd") == 0;
#endif
	if (!built)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("this build of pg_swarm has no %s", name),
				 errhint("Build it where the headers of zlib and libzstd are installed.")));
}

/* swarm_codec_begin: it ends by swarm_codec_free(), or with `parent`. */
SwarmCodec *
swarm_codec_begin(MemoryContext parent, const char *name, bool compress)
{
	MemoryContext context;
	SwarmCodec *codec;

	swarm_codec_check(name);
	context = AllocSetContextCreate(parent, "pg_swarm codec", ALLOCSET_DEFAULT_SIZES);
	codec = MemoryContextAllocZero(context, sizeof(SwarmCodec));
	codec->kind = pg_strcasecmp(name, "gzip") == 0 ? GZIP : ZSTD;
	codec->compress = compress;
	codec->context = context;
	codec->out = MemoryContextAlloc(context, PIECE);
	codec->callback.func = stop;
	codec->callback.arg = codec;
	MemoryContextRegisterResetCallback(context, &codec->callback);
	start(codec);
	return codec;
}

void
swarm_codec_free(SwarmCodec *codec)
{
	MemoryContextDelete(codec->context);
}

/* swarm_codec_write: error 22P03 for what is no such data. */
void
swarm_codec_write(SwarmCodec *codec, const char *data, size_t length,
				  SwarmCodecSink sink, void *arg)
{
	size_t		made = PIECE;

	/* a full piece may mean that there is more to come out */
	while (length > 0 || made == PIECE)
	{
		size_t		used;
		Outcome		outcome = step(codec, data, length, false, &used, &made);

		if (outcome == DAMAGED)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
					 errmsg("the data are not %s, or damaged", codec->kind == GZIP ? "gzip" : "zstd")));
		codec->begun |= used > 0;
		codec->ended = outcome == ENDED || (codec->ended && used == 0);
		data += used;
		length -= used;
		if (made > 0)
			sink(arg, codec->out, made);
		CHECK_FOR_INTERRUPTS();
	}
}

/* swarm_codec_end: the rest; error 22P03 if what was decompressed was cut. */
void
swarm_codec_end(SwarmCodec *codec, SwarmCodecSink sink, void *arg)
{
	Outcome		outcome = MORE;

	if (!codec->compress)
	{
		if (codec->begun && !codec->ended)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
					 errmsg("the %s data end early", codec->kind == GZIP ? "gzip" : "zstd")));
		return;
	}
	while (outcome == MORE)
	{
		size_t		used;
		size_t		made;

		outcome = step(codec, NULL, 0, true, &used, &made);
		if (made > 0)
			sink(arg, codec->out, made);
	}
	if (outcome == DAMAGED)
		elog(ERROR, "could not compress");
}

/* ------------------------------------------------------------------------
 * The libraries
 * ------------------------------------------------------------------------ */

#ifdef SWARM_WITH_ZLIB
static voidpf
gzip_alloc(voidpf context, uInt items, uInt size)
{
	return MemoryContextAllocExtended((MemoryContext) context, (Size) items * size, MCXT_ALLOC_NO_OOM);
}

static void
gzip_free(voidpf context, voidpf memory)
{
	pfree(memory);
}
#endif

static void
start(SwarmCodec *codec)
{
	bool		ok = false;

#ifdef SWARM_WITH_ZLIB
	if (codec->kind == GZIP)
	{
		codec->gzip.zalloc = gzip_alloc;
		codec->gzip.zfree = gzip_free;
		codec->gzip.opaque = codec->context;
		/* 16: with the head and tail of gzip */
		ok = codec->compress ?
			deflateInit2(&codec->gzip, Z_DEFAULT_COMPRESSION, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK :
			inflateInit2(&codec->gzip, 15 + 16) == Z_OK;
	}
#endif
#ifdef SWARM_WITH_ZSTD
	if (codec->kind == ZSTD && codec->compress)
	{
		codec->compressor = ZSTD_createCCtx();
		ok = codec->compressor != NULL &&
			!ZSTD_isError(ZSTD_CCtx_setParameter(codec->compressor, ZSTD_c_checksumFlag, 1));
	}
	else if (codec->kind == ZSTD)
	{
		codec->decompressor = ZSTD_createDCtx();
		ok = codec->decompressor != NULL;
	}
#endif
	if (!ok)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
}

/* stop: zlib's memory is the context's, zstd's is not. */
static void
stop(void *arg)
{
#ifdef SWARM_WITH_ZSTD
	SwarmCodec *codec = arg;

	ZSTD_freeCCtx(codec->compressor);
	ZSTD_freeDCtx(codec->decompressor);
#endif
}

static Outcome
step(SwarmCodec *codec, const char *data, size_t length, bool last, size_t *used, size_t *made)
{
	Outcome		outcome = DAMAGED;

	*used = *made = 0;
#ifdef SWARM_WITH_ZLIB
	if (codec->kind == GZIP)
	{
		z_stream   *z = &codec->gzip;
		uInt		piece = (uInt) Min(length, 1 << 30);
		int			rc;

		z->next_in = (Bytef *) data;
		z->avail_in = piece;
		z->next_out = (Bytef *) codec->out;
		z->avail_out = PIECE;
		rc = codec->compress ? deflate(z, last ? Z_FINISH : Z_NO_FLUSH) : inflate(z, Z_NO_FLUSH);
		*used = piece - z->avail_in;
		*made = PIECE - z->avail_out;
		/* Z_BUF_ERROR: nothing to do, which is no error */
		outcome = rc == Z_STREAM_END ? ENDED : rc == Z_OK || rc == Z_BUF_ERROR ? MORE : DAMAGED;
		/* more members may follow */
		if (outcome == ENDED && !codec->compress && inflateReset(z) != Z_OK)
			outcome = DAMAGED;
	}
#endif
#ifdef SWARM_WITH_ZSTD
	if (codec->kind == ZSTD)
	{
		ZSTD_inBuffer in = {data, length, 0};
		ZSTD_outBuffer out = {codec->out, PIECE, 0};
		size_t		rc = codec->compress ?
		ZSTD_compressStream2(codec->compressor, &out, &in, last ? ZSTD_e_end : ZSTD_e_continue) :
		ZSTD_decompressStream(codec->decompressor, &out, &in);

		*used = in.pos;
		*made = out.pos;
		outcome = ZSTD_isError(rc) ? DAMAGED : rc == 0 && (last || !codec->compress) ? ENDED : MORE;
	}
#endif
	return outcome;
}
