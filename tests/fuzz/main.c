/* main.c: runs a fuzz target over files, for compilers without libFuzzer and for a look at a finding under gdb.
 *
 * Arguments are files and folders; each file is one input.  With none it runs the empty input.  libFuzzer's own flags
 * ("-x=y") are passed over, so that the same command line serves both.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned main_inputs;

static void main_run_file(const char *path)
{
	FILE *f = fopen(path, "rbe");
	uint8_t *data = NULL;
	size_t size = 0, room = 0, n;

	if (!f) {
		perror(path);
		exit(EXIT_FAILURE);
	}
	do {
		room += 65536;
		data = realloc(data, room);
		if (!data)
			abort();
		n = fread(data + size, 1, room - size, f);
		size += n;
	} while (n > 0);
	fclose(f);
	/* Exactly as large as the input, so that a sanitizer sees a read beyond it. */
	data = realloc(data, size ? size : 1);
	LLVMFuzzerTestOneInput(data, size);
	free(data);
	main_inputs++;
}

static void main_run(const char *path)
{
	char below[4096];
	struct dirent *entry;
	struct stat st;
	DIR *dir;

	if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode)) {
		main_run_file(path);
		return;
	}
	dir = opendir(path);
	if (!dir) {
		perror(path);
		exit(EXIT_FAILURE);
	}
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		if (snprintf(below, sizeof(below), "%s/%s", path, entry->d_name) < (int)sizeof(below))
			main_run(below);
	}
	closedir(dir);
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (argv[i][0] != '-')
			main_run(argv[i]);
	}
	if (main_inputs == 0) {
		LLVMFuzzerTestOneInput((const uint8_t *)"", 0);
		main_inputs++;
	}
	printf("%u inputs\n", main_inputs);
	return EXIT_SUCCESS;
}
