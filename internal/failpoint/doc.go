// Package failpoint lets a test kill or stop a process at a named place.
// Without the build tag failpoint it is empty and costs nothing. With it, the
// environment variable MILLRACE_FAILPOINT="name" or "name:n" makes the process
// kill itself with SIGKILL when it passes that place for the first or n-th
// time, and "name:n:stop" makes it stop itself with SIGSTOP there, as a machine
// that is suspended does, until somebody sends SIGCONT.
//
// The places of transfer, in the order in which a batch passes them:
// captured, sequenced, before-produce, mid-produce, acknowledged, folded, ledger, confirmed.
// Those of a topic that is trimmed: trim-decided, trimmed.
// Those of a new epoch's beginning: epoch-checked, epoch-topic, epoch-registered; and of
// an edge that goes over to it: edge_before_switch, edge_after_switch, edge_before_remove.
// Of images: image_rows_written, image_before_publish, image_after_publish,
// image_frame_fetched, image_fetched; of a store restored from one: edge_restored,
// edge_before_restored_switch, edge_after_restored_switch. Of an edge that succeeds another
// process: upgrade-ready, upgrade-taken.
package failpoint
