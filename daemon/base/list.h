/* list.h: intrusive doubly linked list.
 *
 * A head and its nodes are the same struct; an unlinked node points to itself, so list_del() is idempotent and
 * list_is_linked() can be asked.  The list owns nothing: who owns the members is written at the head's declaration.
 *
 *	struct list sessions; (say who owns the members)
 *	list_init(&sessions);
 *	list_add_tail(&sessions, &s->link);
 *	list_for_each_safe(it, next, &sessions)
 *		session_free(container_of(it, struct session, link));
 */
#ifndef BASE_LIST_H
#define BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list {
	struct list *next, *prev;
};

#ifndef container_of
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#endif

#define LIST_INIT(name) \
	{ \
		&(name), &(name) \
	}

static inline void list_init(struct list *l)
{
	l->next = l->prev = l;
}

static inline bool list_empty(const struct list *head)
{
	return head->next == head;
}

/* Is this node in some list?  It must have been list_init()ed. */
static inline bool list_is_linked(const struct list *node)
{
	return node->next != node;
}

static inline void list_link_(struct list *prev, struct list *next, struct list *node)
{
	node->prev = prev;
	node->next = next;
	prev->next = node;
	next->prev = node;
}

/* @node must not be in a list; it need not be initialised. */
static inline void list_add_tail(struct list *head, struct list *node)
{
	list_link_(head->prev, head, node);
}

static inline void list_add_head(struct list *head, struct list *node)
{
	list_link_(head, head->next, node);
}

/* Take @node out of its list, if it is in one. */
static inline void list_del(struct list *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	list_init(node);
}

/* NULL if the list is empty. */
static inline struct list *list_first(const struct list *head)
{
	return list_empty(head) ? NULL : head->next;
}

static inline struct list *list_last(const struct list *head)
{
	return list_empty(head) ? NULL : head->prev;
}

/* Take the first node out and return it; NULL if the list is empty. */
static inline struct list *list_pop(struct list *head)
{
	struct list *node = list_first(head);

	if (node)
		list_del(node);
	return node;
}

/* Move all members of @from to the tail of @to; @from is empty afterwards. */
static inline void list_splice_tail(struct list *to, struct list *from)
{
	if (list_empty(from))
		return;
	from->next->prev = to->prev;
	to->prev->next = from->next;
	from->prev->next = to;
	to->prev = from->prev;
	list_init(from);
}

static inline size_t list_count(const struct list *head)
{
	size_t n = 0;

	for (const struct list *it = head->next; it != head; it = it->next)
		n++;
	return n;
}

/* Declares @it; the list must not change during the walk. */
#define list_for_each(it, head) for (struct list *it = (head)->next; it != (head); it = it->next)

/* Declares @it and @tmp; @it may be unlinked or freed in the body, @tmp may not. */
#define list_for_each_safe(it, tmp, head) \
	for (struct list *it = (head)->next, *tmp = it->next; it != (head); it = tmp, tmp = it->next)

#endif
