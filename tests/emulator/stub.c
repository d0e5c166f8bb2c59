/* A libcuda.so.1 whose entry points are filled in from Python. Build, beside its Python part, with its soname:
   cc -shared -fPIC -O1 -Wl,-soname,libcuda.so.1 -o libcuda.so.1 stub.c */
#include <stdint.h>
#include <string.h>

typedef int64_t Word; /* every argument of the driver's functions fits one */
typedef int (*Entry)(Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word);
enum { MOST = 128 };
static struct { char name[80]; Entry call; } entries[MOST];
static int count = 0, ended = 0;

void stand_in_end(void) { ended = 1; } /* Python is going away: later calls succeed and do nothing */

#define ONE(i)                                                                                                        \
    static int entry##i(Word a, Word b, Word c, Word d, Word e, Word f, Word g, Word h, Word j, Word k, Word l, Word m) \
    { return ended ? 0 : entries[0x##i].call(a, b, c, d, e, f, g, h, j, k, l, m); }
#define SIXTEEN(p) ONE(p##0) ONE(p##1) ONE(p##2) ONE(p##3) ONE(p##4) ONE(p##5) ONE(p##6) ONE(p##7) \
    ONE(p##8) ONE(p##9) ONE(p##a) ONE(p##b) ONE(p##c) ONE(p##d) ONE(p##e) ONE(p##f)
SIXTEEN(0) SIXTEEN(1) SIXTEEN(2) SIXTEEN(3) SIXTEEN(4) SIXTEEN(5) SIXTEEN(6) SIXTEEN(7)
#define NAME(i) entry##i,
#define NAMES(p) NAME(p##0) NAME(p##1) NAME(p##2) NAME(p##3) NAME(p##4) NAME(p##5) NAME(p##6) NAME(p##7) \
    NAME(p##8) NAME(p##9) NAME(p##a) NAME(p##b) NAME(p##c) NAME(p##d) NAME(p##e) NAME(p##f)
static Entry calls[MOST] = { NAMES(0) NAMES(1) NAMES(2) NAMES(3) NAMES(4) NAMES(5) NAMES(6) NAMES(7) };

int stand_in_register(const char *name, void *call)
{
    if (count == MOST) return 1;
    strncpy(entries[count].name, name, sizeof entries[count].name - 1);
    entries[count++].call = (Entry)call;
    return 0;
}

static int not_supported(void) { return 801; }

int cuGetExportTable(const void **table, const void *id) { (void)id; *table = 0; return 500; }
int cuGetProcAddress(const char *name, void **found, int version, uint64_t flags);

int cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status)
{
    (void)flags;
    if (status) *status = 0;
    if (!strcmp(name, "cuGetProcAddress"))
        *found = version >= 12000 ? (void *)cuGetProcAddress_v2 : (void *)cuGetProcAddress;
    else if (!strcmp(name, "cuGetExportTable"))
        *found = (void *)cuGetExportTable;
    else {
        *found = (void *)not_supported;
        for (int i = 0; i < count; i++)
            if (!strcmp(entries[i].name, name)) { *found = (void *)calls[i]; return 0; }
    }
    return 0;
}

int cuGetProcAddress(const char *name, void **found, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}

int cuInit(unsigned flags)
{
    void *call;
    cuGetProcAddress_v2("cuInit", &call, 0, 0, 0);
    return ((int (*)(Word))call)(flags);
}

int cuDriverGetVersion(int *version)
{
    void *call;
    cuGetProcAddress_v2("cuDriverGetVersion", &call, 0, 0, 0);
    return ((int (*)(Word))call)((Word)(intptr_t)version);
}
