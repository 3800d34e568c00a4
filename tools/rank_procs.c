// A barrier that counts generations, and two sets of notes in turn: who writes a note of exchange
// n + 2 has passed the barrier of n + 1, so everybody has read those of n.
#include "tools/rank_procs.h"

#include <assert.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct rank_procs {
    int n;
    atomic_int arrived, generation;
    atomic_bool broken; // a rank is gone that was not expected to be
    atomic_int exchanges[RANK_PROCS_MAX];
    unsigned char notes[2][RANK_PROCS_MAX][RANK_NOTE_BYTES];
};

int rank_procs_size(const struct rank_procs *p)
{
    return p->n;
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool rank_procs_barrier(struct rank_procs *p)
{
    int generation = atomic_load(&p->generation);
    if (atomic_fetch_add(&p->arrived, 1) + 1 == p->n) {
        atomic_store(&p->arrived, 0);
        atomic_fetch_add(&p->generation, 1);
        return true;
    }
    double until = now_s() + RANK_WAIT_S;
    while (atomic_load(&p->generation) == generation) {
        if (atomic_load(&p->broken) || now_s() > until)
            return false;
        struct timespec pause = {.tv_nsec = 20000};
        nanosleep(&pause, NULL);
    }
    return true;
}

bool rank_procs_exchange(struct rank_procs *p, int rank, const void *mine, size_t bytes, void *all)
{
    assert(bytes <= RANK_NOTE_BYTES);
    int set = p->exchanges[rank]++ & 1;
    memcpy(p->notes[set][rank], mine, bytes);
    if (!rank_procs_barrier(p))
        return false;
    for (int i = 0; i < p->n; i++)
        memcpy((char *)all + (size_t)i * bytes, p->notes[set][i], bytes);
    return true;
}

static int which(const pid_t *pids, int n, pid_t pid)
{
    for (int i = 0; i < n; i++)
        if (pids[i] == pid)
            return i;
    return -1;
}

static int wait_all(struct rank_procs *p, pid_t *pids, unsigned dies)
{
    int failed = 0;
    for (int left = p->n; left > 0;) {
        int status;
        pid_t pid = waitpid(-1, &status, 0);
        int rank = which(pids, p->n, pid);
        if (pid < 0)
            return 1;
        if (rank < 0)
            continue;
        left--;
        pids[rank] = 0;
        if ((WIFEXITED(status) && WEXITSTATUS(status) == 0) ||
            (dies >> rank & 1 && WIFSIGNALED(status)))
            continue;
        fprintf(stderr, "rank %d: %s %d\n", rank, WIFSIGNALED(status) ? "signal" : "exit",
                WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        failed = 1;
        atomic_store(&p->broken, true);
        for (int i = 0; i < p->n; i++)
            if (pids[i])
                kill(pids[i], SIGKILL);
    }
    return failed;
}

int rank_procs_run(int n, unsigned dies, rank_procs_body *body, void *arg)
{
    assert(n >= 1 && n <= RANK_PROCS_MAX);
    struct rank_procs *p =
        mmap(NULL, sizeof *p, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pids[RANK_PROCS_MAX] = {0};
    if (p == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    p->n = n;
    fflush(NULL);
    for (int i = 0; i < n; i++) {
        pids[i] = fork();
        if (pids[i] < 0) {
            perror("fork");
            atomic_store(&p->broken, true);
            p->n = i;
            break;
        }
        if (pids[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            int rc = body(p, i, arg);
            fflush(NULL);
            _exit(rc);
        }
    }
    int failed = wait_all(p, pids, dies) || p->n != n;
    munmap(p, sizeof *p);
    return failed;
}
