/* workload.h: built-in request streams, for users who have no trace.  The same text gives the same requests on every machine.
 *
 * A workload is conversations, of which @users run at the same time.  A conversation starts with one of @prompts shared system prompts
 * (popularity Zipf: weight 1 / rank^zipf), then has a first text of its own and a number of turns; a turn is one request:
 * everything said so far and a new input, cut into blocks of @block tokens (whole ones only: that is what engines cache).
 *
 *   chat      multi-turn chats: a short system prompt, short questions and answers, all of them kept in the context
 *   agent     tool-using agents: few long tool prompts, many turns in bursts, long tool results kept in the context
 *   document  many questions to one document: a long text of its own, each question and answer forgotten afterwards
 *
 * key       chat  agent  document   what it is
 * requests  4000   4000      4000   length of the stream
 * users      100     40        40   conversations at the same time
 * seed         1      1         1
 * turns        6     20         8   mean of a geometric distribution
 * prompts     32      4         1   shared system prompts
 * zipf       1.0    1.0       1.0   skew of their popularity; 0: all alike
 * system    1500   6000       500   tokens of a system prompt, uniform in 0.5 .. 1.5 of that
 * first        0   1000     24000   tokens of the conversation's own first text, uniform in 0.5 .. 1.5 of that
 * input      200   1200       100   tokens of one input (or tool result), exponential
 * output     350    200       250   tokens of one answer, exponential
 * block      128    128       128   tokens a block
 * max      32768 131072    131072   a conversation ends when its context would be longer
 * burst        0     80         0   percent: the next request is the same conversation's
 *
 * With these values, measured (and held by the unit test within a few hundredths): blocks a request 31, 240, 194; hit rate of an
 * unlimited cache 0.87, 0.95, 0.87.
 */
#ifndef KVBMCTL_WORKLOAD_H
#define KVBMCTL_WORKLOAD_H

#include "requests.h"

enum { WORKLOAD_E_TEXT = 1 };

#define WORKLOAD_ERROR_SIZE 256
#define WORKLOAD_MAX_BLOCKS 16384u /* of one request */

/* Generates what @text says, "KIND" or "KIND:key=value,...", into @rs, which must be empty.
 * Outcome: TEXT (@ret_error says what is wrong with it); -ENOMEM. */
int workload_make(const char *text, struct requests *rs, char ret_error[WORKLOAD_ERROR_SIZE]);

#endif
