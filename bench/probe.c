/* The job of every benchmark: its first act is to look at the clock; it reports that and pauses.
 *
 * One record of 16 bytes goes to the FIFO that $BENCH_FIFO names (less than PIPE_BUF, so records of
 * many jobs never mix, pipe(7)). Nobody reading is no reason to die: the job then only pauses.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

struct record {
    int64_t nanoseconds; /* CLOCK_MONOTONIC */
    int64_t pid;
};

int main(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct record record = {now.tv_sec * INT64_C(1000000000) + now.tv_nsec, getpid()};
    const char *path = getenv("BENCH_FIFO");
    int fifo = path ? open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC) : -1;
    if (fifo >= 0) {
        if (write(fifo, &record, sizeof record) != sizeof record)
            return 1;
        close(fifo);
    }
    for (;;)
        pause();
}
