package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/image"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/follow"
	"github.com/millrace-db/millrace/internal/mend"
	"github.com/millrace-db/millrace/internal/tlsfiles"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Take images of local stores, and make stores from them",
		Long: `Take images of local stores, and make stores from them. An image is all rows of a stream as of one index, in
two files: a new edge that begins with one reads from the topic only what came after. They are kept in
edge.images.dir, in a directory a stream.`,
		Args: noArgs,
	}
	cmd.AddCommand(a.imageCreateCommand(), a.imageFetchCommand(), a.imageListCommand(), a.imageVerifyCommand(), a.imageRestoreCommand())
	return cmd
}

// imaging is one of the commands on a stream's images.
type imaging struct {
	*app
	c      *config.Config
	stream *config.Stream
	dir    string
	asJSON bool
	// keys are those that have to have signed the stream; nil asks for none.
	keys *millrace.Keyring
}

// imageSub makes a command on a stream's images.
func (a *app) imageSub(cmd *cobra.Command, run func(ctx context.Context, i *imaging, args []string) error) *cobra.Command {
	var stream string
	var asJSON bool
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.load()
		if err != nil {
			return err
		}
		s, err := one(c, stream, c.Edge.Streams)
		if err != nil {
			return err
		}
		keys, err := trusted(s)
		if err != nil {
			return err
		}
		i := &imaging{app: a, c: c, stream: s, asJSON: asJSON, dir: filepath.Join(c.Edge.Images.Dir, s.Name), keys: keys}
		return run(cmd.Context(), i, args)
	}
	cmd.Flags().StringVar(&stream, "stream", "", "the stream, where the edge keeps several")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// oneImage takes at most the name of an image.
func oneImage(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usage("%s takes at most one image, got %s more; see %[1]s --help", cmd.CommandPath(), quote(args[1]))
	}
	return nil
}

func (a *app) imageCreateCommand() *cobra.Command {
	return a.imageSub(&cobra.Command{
		Use:   "create",
		Short: "Take an image of this host's store, whether its edge runs or not",
		Long: `Take an image of this host's store, whether its edge runs or not. It is of one snapshot; applying and answering
go on, and the store's file grows by what changes meanwhile. Run it as the user of the edge, in the same
container. Of an index of which there is an image already, none is written. Images beyond edge.images.keep are
removed, the oldest first.`,
		Example: "  millrace image create --stream bank",
		Args:    noArgs,
	}, func(ctx context.Context, i *imaging, _ []string) error { return i.create(ctx) })
}

func (a *app) imageFetchCommand() *cobra.Command {
	return a.imageSub(&cobra.Command{
		Use:   "fetch URL",
		Short: "Download an image from another edge, or from anywhere that serves its files",
		Long: `Download an image from another edge, or from anywhere that serves its files, with http or https. URL is that of
a stream's images at an edge, or of a directory of images, of which the newest is taken, or that of one image, whose
last part is its name; a directory of this host is file:///path. Interrupted, it goes on where it was when it is run
again. Every frame's hash is compared. With streams.signing.trusted, the history up to the image's index has to be
signed; without, take it only from where you trust it.`,
		Example: "  millrace image fetch https://edge-7.internal/v1/streams/bank/images\n" +
			"  millrace image fetch https://bucket.example/backups/image-1-4711",
		Args: minArgs(1, "a URL"),
	}, func(ctx context.Context, i *imaging, args []string) error {
		if len(args) > 1 {
			return usage("millrace image fetch takes one URL, got %s more; see millrace image fetch --help", quote(args[1]))
		}
		return i.fetch(ctx, args[0])
	})
}

func (a *app) imageListCommand() *cobra.Command {
	return a.imageSub(&cobra.Command{
		Use:   "list",
		Short: "List the images of a stream, the newest first",
		Args:  noArgs,
	}, func(_ context.Context, i *imaging, _ []string) error { return i.list() })
}

func (a *app) imageVerifyCommand() *cobra.Command {
	return a.imageSub(&cobra.Command{
		Use:   "verify [IMAGE]",
		Short: "Read an image through, and compare every hash and every row's key",
		Long: `Read an image through, and compare every hash and every row's key. IMAGE is a name that image list shows, or a
directory with a / in its path; the newest image if none is given. With streams.signing.trusted, the history up to
its index has to be signed too.`,
		Args: oneImage,
	}, func(ctx context.Context, i *imaging, args []string) error { return i.verify(ctx, args) })
}

func (a *app) imageRestoreCommand() *cobra.Command {
	return a.imageSub(&cobra.Command{
		Use:   "restore [IMAGE]",
		Short: "Make this host's store from an image; its edge must not run",
		Long: `Make this host's store from an image; its edge must not run, and follows the topic from the image's offset on when
it is started again. The store is made beside the one that is there, read through, and then takes its place at
once; processes that have that one open for reading are led to the new one. Interrupted or failed, everything
is as it was. What is older than the store is refused. IMAGE is a name that image list shows, or a directory
with a / in its path; the newest image if none is given. With streams.signing.trusted, the history up to its index
has to be signed; that its rows are the outcome of that history the next pass of verification tells, and the edge's
status says so until then.`,
		Example: "  millrace image restore --stream bank /mnt/images/image-1-4711",
		Args:    oneImage,
	}, func(ctx context.Context, i *imaging, args []string) error { return i.restore(ctx, args) })
}

// shownImage is an image in the answers of these commands.
type shownImage struct {
	Name     string         `json:"name"`
	Path     string         `json:"path"`
	Stream   string         `json:"stream"`
	StreamID string         `json:"stream_id,omitempty"`
	Epoch    millrace.Epoch `json:"epoch"`
	Index    millrace.Index `json:"index"`
	Chain    string         `json:"chain,omitempty"`
	TopicID  string         `json:"topic_id,omitempty"`
	// Offset is that of the newest record taken in; null if none was.
	Offset     *millrace.Offset `json:"offset,omitempty"`
	SourceTime *time.Time       `json:"source_time,omitempty"`
	CreatedAt  *time.Time       `json:"created_at,omitempty"`
	Tables     []shownSet       `json:"tables,omitempty"`
	Rows       uint64           `json:"rows"`
	Frames     int              `json:"frames"`
	Bytes      int64            `json:"bytes"`
	// Problem says why the image cannot be used.
	Problem string `json:"problem,omitempty"`
	// Signed tells that the manifest has a signed header. Existed and Removed are told by image create and fetch, Verified by
	// verify, Store by restore.
	Signed   bool   `json:"signed,omitempty"`
	Existed  bool   `json:"existed,omitempty"`
	Removed  int    `json:"removed,omitempty"`
	Verified bool   `json:"verified,omitempty"`
	Store    string `json:"store,omitempty"`
}

// shownSet is the rows of a table, or of a load of it that had not ended.
type shownSet struct {
	Table    string `json:"table"`
	Load     uint64 `json:"load,omitempty"`
	Rows     uint64 `json:"rows"`
	Diverged string `json:"diverged,omitempty"`
}

func (i *imaging) show(path string, m *image.Manifest) *shownImage {
	c := m.Checkpoint
	s := &shownImage{
		Name: m.Name(), Path: path, Stream: i.stream.Name, StreamID: c.Stream.String(), Epoch: c.Epoch, Index: c.Index, Chain: c.Chain.String(),
		TopicID: c.TopicID, Rows: m.Rows(), Frames: len(m.Frames), Bytes: m.Stored(),
		Signed: len(m.Header) > 0,
	}
	if c.Offset != millrace.NoOffset {
		s.Offset = &c.Offset
	}
	if !c.Time.IsZero() {
		s.SourceTime = &c.Time
	}
	if !m.Created.IsZero() {
		s.CreatedAt = &m.Created
	}
	names := make(map[millrace.TableID]string)
	for _, schema := range m.Schemas { // the newest version of each table comes last
		names[schema.Table] = schema.QualifiedName()
	}
	diverged := make(map[millrace.TableID]string)
	for _, d := range m.Diverged {
		diverged[d.Table] = d.Reason
	}
	for _, set := range m.Sets {
		s.Tables = append(s.Tables, shownSet{Table: names[set.Table], Load: uint64(set.Load), Rows: set.Rows, Diverged: diverged[set.Table]})
	}
	return s
}

func (i *imaging) printJSON(v any) error {
	encoder := json.NewEncoder(i.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

// say prints what was done with an image.
func (i *imaging) say(s *shownImage, format string, args ...any) error {
	if i.asJSON {
		return i.printJSON(s)
	}
	fmt.Fprintf(i.stdout, format+"\n", args...)
	return nil
}

// progress shows how far something is; end ends the showing.
func (i *imaging) progress(doing string) (show func(image.Progress), end func()) {
	if isTerminal(i.stderr) && !i.asJSON {
		bar := progressbar.NewOptions(barSteps, progressbar.OptionSetWriter(i.stderr), progressbar.OptionSetPredictTime(false),
			progressbar.OptionSetElapsedTime(false), progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth())
		return func(p image.Progress) {
			if p.Checking {
				doing = "checking"
			}
			bar.Describe(doing)
			// A terminal that went away wants no more of it.
			_ = bar.Set(int(float64(p.Rows) / float64(max(p.Of, 1)) * barSteps))
		}, func() { _ = bar.Finish() }
	}
	var next time.Time
	var shown string
	return func(p image.Progress) {
		if p.Checking {
			doing = "checking"
		}
		if at := time.Now(); !i.asJSON && (doing != shown || !at.Before(next)) {
			shown, next = doing, at.Add(lineEvery)
			fmt.Fprintf(i.stderr, "%s, %d of %d rows, %.0f %%\n", doing, p.Rows, p.Of, 100*float64(p.Rows)/float64(max(p.Of, 1)))
		}
	}, func() {}
}

func (i *imaging) create(ctx context.Context) error {
	o := edge.Options{Dir: follow.StoreDir(i.c, i.stream), ReadOnly: true}
	if i.stream.ID != "" {
		o.Stream, _ = millrace.ParseStreamID(i.stream.ID) // the configuration has checked it
	}
	store, err := edge.Open(o)
	if err != nil {
		return err
	}
	show, end := i.progress("writing")
	c, err := image.Create(ctx, store, image.Options{Dir: i.dir, Keep: i.c.Edge.Images.Keep, Progress: show})
	end()
	if err = errors.Join(err, store.Close()); err != nil {
		return err
	}
	s := i.show(c.Path, c.Manifest)
	s.Existed, s.Removed = c.Existed, c.Removed
	if c.Existed {
		return i.say(s, "there is an image of stream %s at index %v: %s", s.Stream, s.Index, s.Path)
	}
	return i.say(s, "image of stream %s at index %v: %d rows in %s, %s", s.Stream, s.Index, s.Rows, mebibytes(s.Bytes), s.Path)
}

func (i *imaging) fetch(ctx context.Context, from string) error {
	peers, err := tlsfiles.NewClient(peerFiles(i.c), i.logger(i.c))
	if err != nil {
		return fmt.Errorf("edge.peers: %w", err)
	}
	source := image.Source{URL: from, Keep: i.c.Edge.Images.Keep, Trusted: i.keys}
	if !strings.HasPrefix(from, "file:") {
		source.Client = peers.HTTP()
	}
	if i.stream.ID != "" {
		source.Stream, _ = millrace.ParseStreamID(i.stream.ID) // the configuration has checked it
	}
	show, end := i.progress("downloading")
	source.Progress = show
	c, err := image.Fetch(ctx, i.dir, source)
	end()
	if err != nil {
		return err
	}
	s := i.show(c.Path, c.Manifest)
	if s.Existed, s.Removed = c.Existed, c.Removed; c.Existed {
		return i.say(s, "there is that image of stream %s at index %v: %s", s.Stream, s.Index, s.Path)
	}
	return i.say(s, "image of stream %s at index %v: %d rows in %s, %s", s.Stream, s.Index, s.Rows, mebibytes(s.Bytes), s.Path)
}

func (i *imaging) list() error {
	entries, err := image.List(i.dir)
	if err != nil {
		return err
	}
	all := make([]*shownImage, 0, len(entries))
	for _, e := range entries {
		opened, err := image.Open(e.Path)
		if err != nil {
			all = append(all, &shownImage{Name: filepath.Base(e.Path), Path: e.Path, Stream: i.stream.Name, Epoch: e.Epoch, Index: e.Index, Problem: mend.OneLine(err.Error())})
			continue
		}
		all = append(all, i.show(e.Path, opened.Manifest()))
		if err := opened.Close(); err != nil {
			return err
		}
	}
	if i.asJSON {
		return i.printJSON(all)
	}
	if len(all) == 0 {
		fmt.Fprintf(i.stdout, "there is no image of stream %s in %s\n", i.stream.Name, i.dir)
		return nil
	}
	w := tabwriter.NewWriter(i.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tEPOCH\tINDEX\tTAKEN\tROWS\tSIZE\t")
	for _, s := range all {
		if s.Problem != "" {
			fmt.Fprintf(w, "%s\t%v\t%v\t-\t-\t-\t%s\n", s.Name, s.Epoch, s.Index, s.Problem)
			continue
		}
		taken := "-"
		if s.CreatedAt != nil {
			taken = s.CreatedAt.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%v\t%v\t%s\t%d\t%s\t\n", s.Name, s.Epoch, s.Index, taken, s.Rows, mebibytes(s.Bytes))
	}
	return w.Flush()
}

// open opens the image that an argument names, and wants it to be signed where keys are
// trusted.
func (i *imaging) open(args []string) (*image.Image, error) {
	opened, err := i.named(args)
	if err != nil {
		return nil, err
	}
	if err := opened.Manifest().Proven(i.keys); err != nil {
		return nil, errors.Join(err, opened.Close())
	}
	return opened, nil
}

func (i *imaging) named(args []string) (*image.Image, error) {
	if len(args) == 1 {
		path := args[0]
		if !strings.ContainsRune(path, os.PathSeparator) {
			path = filepath.Join(i.dir, path)
		}
		return image.Open(path)
	}
	all, err := image.List(i.dir)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, operator("there is no image of stream %s in %s; mend: millrace image create, or name the directory of one", i.stream.Name, i.dir)
	}
	return image.Open(all[0].Path)
}

func (i *imaging) verify(ctx context.Context, args []string) error {
	opened, err := i.open(args)
	if err != nil {
		return err
	}
	show, end := i.progress("reading")
	err = opened.Verify(ctx, show)
	end()
	if err = errors.Join(err, opened.Close()); err != nil {
		return err
	}
	s := i.show(opened.Path(), opened.Manifest())
	s.Verified = true
	return i.say(s, "image %s of stream %v at index %v is whole: %d rows", s.Path, s.StreamID, s.Index, s.Rows)
}

func (i *imaging) restore(ctx context.Context, args []string) error {
	opened, err := i.open(args)
	if err != nil {
		return err
	}
	s, err := i.restoreFrom(ctx, opened)
	if err = errors.Join(err, opened.Close()); err != nil {
		return err
	}
	return i.say(s, "store of stream %s is that of image %s, at index %v: %d rows", s.Stream, s.Name, s.Index, s.Rows)
}

func (i *imaging) restoreFrom(ctx context.Context, opened *image.Image) (s *shownImage, err error) {
	filter, err := i.c.Edge.Tables.Filter(i.stream.Name)
	if err != nil {
		return nil, fmt.Errorf("edge.tables: %w", err)
	}
	o := edge.Options{
		Filter: filter,
		Dir:    follow.StoreDir(i.c, i.stream), MapSize: int64(i.c.Edge.MapSize), Indexes: i.c.Edge.Indexes[i.stream.Name], Logger: i.logger(i.c),
	}
	if i.stream.ID != "" {
		o.Stream, _ = millrace.ParseStreamID(i.stream.ID) // the configuration has checked it
	}
	home, err := edge.OpenHome(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, home.Close()) }()
	show, end := i.progress("restoring")
	restored, err := image.Restore(ctx, home, opened, show)
	end()
	if err != nil {
		return nil, err
	}
	if err := restored.Switch(ctx); err != nil {
		return nil, errors.Join(err, restored.Drop())
	}
	s = i.show(opened.Path(), opened.Manifest())
	s.Store = home.Store().Dir()
	return s, nil
}
