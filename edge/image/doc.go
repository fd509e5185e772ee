// Package image keeps images of stores: all rows of a stream as of one index, in
// files that know nothing of how a store keeps them. A new edge, or one that has
// fallen behind what the topic still holds, begins with one.
//
// It owns the form of these files (docs/FORMAT.md), their directory, and how they
// are written and read. It promises that an image is of one snapshot, that it
// appears under its name only when it is whole and durable, that nothing is used
// of what it reads before its hash has been compared, and that files which may
// come from anywhere cost no more memory than their limits say. What is in a store,
// and how one is made, is package edge's business.
//
//	<dir>/image-<epoch>-<index>/manifest   what the image is, and the hashes
//	<dir>/image-<epoch>-<index>/rows       the frames, one behind the other
//	<dir>/image-….part/                    one that is being written, or was left
//	<dir>/image-….load/                    one that is being downloaded, or was left
//	<dir>/images.json                      which images there are
//	<dir>/images.lock                      one process writes or removes images
//
// The hashes say that the rows are those that the manifest was written for. Where the
// stream is signed, the manifest has the signed header of the record at whose end the
// image was taken, which proves its index and chain (Manifest.Proven). That the rows are
// the outcome of that history only the next pass of verification tells: until then the
// store made from them says so (edge.Store.Unproven).
package image
