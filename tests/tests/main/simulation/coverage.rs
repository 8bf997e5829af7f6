//! How often things happened that runs are meant to reach: a world in which nothing goes wrong proves nothing.

macro_rules! coverage {
    ($($(#[$doc:meta])* $field:ident: $least:literal,)*) => {
        /// Counts, over one run or many.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(super) struct Coverage {
            $($(#[$doc])* pub(super) $field: u64,)*
        }

        impl Coverage {
            pub(super) fn add(&mut self, other: &Self) {
                $(self.$field += other.$field;)*
            }

            /// Fails if so many runs did not reach everything often enough.
            pub(super) fn check_reached(&self, runs: u64) {
                $(
                    let least = $least * runs / 100;
                    let (name, found) = (stringify!($field), self.$field);
                    assert!(found >= least, "{name} is {found} in {runs} runs, at least {least} are meant: {self:?}");
                )*
            }
        }
    };
}

// The numbers are for 100 runs.
coverage! {
    completed: 1000,
    tokens: 10_000,
    /// Attempts after a request's first.
    resubmitted: 300,
    /// Requests asked anew because their coordinator died.
    retried: 50,
    /// Requests whose time was over.
    deadlines: 1,
    terms: 150,
    restarts: 200,
    /// Losses of power in the middle of a write.
    torn: 10,
    placements: 200,
    pauses: 100,
    checkpoints_sent: 10,
    /// Steps, results and assignments that were dropped because of their generation or opening.
    stale_steps: 20,
    /// Tokens of attempts that were over, handed to the next.
    stale_tokens: 1,
    pipelines_lost: 20,
    preemptions: 5,
    prefix_hits: 100,
    workers_lost: 100,
    /// Losses after which nobody had to read weights.
    promotions: 10,
    events: 100_000,
}
